"""What ``predict`` reads and writes: images, videos and cameras in; pictures and lists out."""

"""Multi-scale deformable attention behind one seam, ``detrlab.ops.deformable``."""

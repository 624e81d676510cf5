"""What a detector costs on this machine: time, memory, arithmetic; ours and transformers'."""

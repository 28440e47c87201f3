"""What every other package stands on: errors, files, rows, paths, devices, processes, and a stage's frame."""

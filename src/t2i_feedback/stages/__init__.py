"""The stages of dvc.yaml, one file each: each reads its inputs, calls plain functions and writes complete outputs."""

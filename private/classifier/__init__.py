"""The DP-SGD image classifier of De et al. 2022 (arXiv 2204.13650), every ingredient a switch."""

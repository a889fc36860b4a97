# SPDX-License-Identifier: Apache-2.0
"""The QEMU guest: kernel source, patches, build, root file system, session. Knows no BPF."""

# SPDX-License-Identifier: Apache-2.0
"""bpfoom: BPF policies for the kernel's out-of-memory handling, per cgroup."""

__version__ = "0.1.0"

# SPDX-License-Identifier: Apache-2.0
"""Cgroup trees and workloads, run on a real kernel, with what must hold afterwards."""

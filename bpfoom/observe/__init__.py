# SPDX-License-Identifier: Apache-2.0
"""What happened: cgroupfs, decision records, process exits, results."""

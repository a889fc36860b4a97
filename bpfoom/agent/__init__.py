# SPDX-License-Identifier: Apache-2.0
"""What is to be attached where, from a file, made so once or kept so."""

# SPDX-License-Identifier: Apache-2.0
"""The command line: the only room that prints or exits."""

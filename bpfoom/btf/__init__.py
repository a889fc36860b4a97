# SPDX-License-Identifier: Apache-2.0
"""The running kernel's types through libbpf: structs, enums, functions and their prototypes."""

# SPDX-License-Identifier: Apache-2.0
"""C text to HandlerObject: the bcc child process, instruction decode, lint, object cache."""

# SPDX-License-Identifier: Apache-2.0
"""The exceptions of bpfoom. Lower layers raise them with data; only ``bpfoom.cli`` prints.

::

    BpfoomError                      1   anything that failed
    ├── UsageError                   2   a value given by the user does not fit
    │   └── ParameterError               a policy parameter: unknown, wrong type, out of range
    ├── MissingFeatureError          3   the kernel or a tool lacks what is needed
    ├── NotThereError                4   cgroup, policy, pin or guest that does not exist
    ├── PermissionDeniedError        5   root or a capability is needed
    ├── PolicyError                  1   the policy itself is wrong
    │   ├── CardError                    its opening comment
    │   ├── TemplateError                Jinja, with file and line
    │   ├── CompileError                 clang's messages, or the compiler child died
    │   ├── LintError                    compiled, but not to what was written
    │   └── VerifierError                refused by the kernel, with its log
    ├── SyscallError                 1   a system call failed where nothing above fits
    ├── StaleObjectError             1   compiled for another kernel: names the first difference
    ├── ResultFileError              1   a result file: half-written, foreign, another version's
    ├── ForeignPinError              1   somebody else's object is where ours would be pinned
    ├── KernelPatchError             1   a patch does not apply: patch, file, hunk
    ├── CommandError                 1   a host or guest command exited non-zero
    └── InfrastructureError          69  not our answer to give: build, image, guest
        ├── BuildError                   kernel or image build failed: log and its last lines
        ├── PreflightError               this machine lacks something: all of it, at once
        └── LostVMError                  the guest vanished: its last console lines
"""

from __future__ import annotations

from typing import Any, ClassVar


class BpfoomError(Exception):
    """Something failed.

    ``message`` says what, ``hint`` what to do next (shown last), ``detail`` carries long text such
    as a verifier log, ``shown`` what people are to see of it if not all, and ``data`` the facts a
    program may want: stage, object, errno, path.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, hint: str = "", detail: str = "", shown: str = "", **data: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail
        self.shown = shown or detail
        self.data = data

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON-ready data; the facts stand apart, under ``data``."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "detail": self.detail,
            "data": self.data,
        }


class UsageError(BpfoomError):
    exit_code = 2


class ParameterError(UsageError):
    pass


class MissingFeatureError(BpfoomError):
    exit_code = 3


class NotThereError(BpfoomError):
    exit_code = 4


class PermissionDeniedError(BpfoomError):
    exit_code = 5


class PolicyError(BpfoomError):
    pass


class CardError(PolicyError):
    pass


class TemplateError(PolicyError):
    pass


class CompileError(PolicyError):
    pass


class LintError(PolicyError):
    pass


class VerifierError(PolicyError):
    pass


class SyscallError(BpfoomError):
    pass


class StaleObjectError(BpfoomError):
    pass


class ResultFileError(BpfoomError):
    pass


class ForeignPinError(BpfoomError):
    pass


class KernelPatchError(BpfoomError):
    pass


class CommandError(BpfoomError):
    pass


class InfrastructureError(BpfoomError):
    exit_code = 69


class BuildError(InfrastructureError):
    pass


class PreflightError(InfrastructureError):
    pass


class LostVMError(InfrastructureError):
    pass

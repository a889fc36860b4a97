# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page from result documents: who was chosen, why, and what memory did.

``timeline``, ``bands``, ``verdict`` and ``groups`` turn documents into what is shown, ``figures``
draws it with matplotlib, ``svg`` makes the drawings fit for a page, ``view`` puts both together and
``page`` fills the template. Nothing here measures or judges: a page says what its documents say.
"""

"""The one registry: every model a person may name, its defaults, its sources and its licence.

Light ring: standard library only. Every accepted name, default and download derives from the rows below.
"""

from __future__ import annotations

"""A policy's text to a Policy, or to every fault in it at once."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from types import MappingProxyType

from proxy.errors import Fault, PolicyError
from proxy.policy.adopt import adopt
from proxy.policy.cautions import cautions
from proxy.policy.defaults import give_way
from proxy.policy.nodes import Node, Table, Unreadable
from proxy.policy.policy import Policy
from proxy.policy.read import Reader
from proxy.policy.rules import check
from proxy.policy.shapes import SHAPES
from proxy.policy.source import PolicySource as PolicySource
from proxy.policy.source import find as find
from proxy.policy.source import read_file as read_file
from proxy.policy.substitute import ABSENT
from proxy.policy.values import above
from proxy.policy.yamltext import parse


def load(source: PolicySource, environ: Mapping[str, str], needs: Set[str] | None = None) -> Policy:
    """The policy that a text says, in this environment. Raises PolicyError with every fault; where the caller `needs`
    some keys alone, variables that others name may be missing from the environment: these have their defaults.

    What the text leaves out is the default; some defaults (`listen.public`, the tokens) come out of
    the environment, so even an empty text can be at fault.
    """
    lines = max(1, len(source.text.splitlines()))
    try:
        root: Node = parse(source.text) or Table(1, ())
    except Unreadable as error:
        line = min(max(error.line, 1), lines)
        raise PolicyError([Fault(source.name, line, "policy", error.problem, error.mend)]) from None
    reader = Reader(source.name, environ, SHAPES, lines)
    policy: Policy = reader.section(Policy, root, "", Policy())
    if not isinstance(policy, Policy):
        raise PolicyError(reader.faults)
    policy, moved = give_way(reader, policy)
    upstreams, disagreements = adopt(reader, policy.upstreams)
    policy = replace(policy, upstreams=upstreams, source=source.name)
    check(reader, policy)
    faults = reader.faults
    if needs is not None:
        faults = [fault for fault in faults if ABSENT not in fault.problem or not needs.isdisjoint(above(fault.key))]
    if faults:
        raise PolicyError(sorted(faults, key=lambda fault: fault.line))
    first = (source.warning,) if source.warning else ()
    warnings = (*first, *reader.warnings, *moved, *disagreements, *cautions(reader, policy))
    return replace(policy, warnings=warnings, lines=MappingProxyType(reader.named))

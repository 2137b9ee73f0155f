"""The rule language: TOML text and rule specs in, proved rules out. No torch here."""

from peftc.lang.axes import (
    ANY,
    Axes,
    AxesError,
    Constant,
    Dimension,
    Term,
    Unknown,
    contract,
    meet,
    read_axes,
    read_dimensions,
    show,
)
from peftc.lang.bind import Bound, RuleLike, bind, bind_all, flatten, numbered
from peftc.lang.check import check
from peftc.lang.choosing import PartSelector, accompanies, goes_along, share_options, sides, words
from peftc.lang.codes import CODES
from peftc.lang.condition import Condition, by_default, conditions, is_on, off, unmet
from peftc.lang.document import (
    Define,
    Loss,
    Match,
    MatchChange,
    Option,
    Parameter,
    Quantise,
    Rule,
    Schedule,
    Section,
    Train,
    Use,
)
from peftc.lang.expression import Expression, parse
from peftc.lang.folding import behind_fold
from peftc.lang.formats import COMPUTE, FORMATS, Format, Packing, read_packing, register_format
from peftc.lang.growing import grown_by
from peftc.lang.initial import LAWS, Initial, Law, read_initial
from peftc.lang.lengths import Check
from peftc.lang.library import Library, default_library, load_rule
from peftc.lang.lifting import lift_problem
from peftc.lang.operations import OPERATIONS, Operation, Setting, register
from peftc.lang.policies import POLICIES, Policy, Target, register_policy
from peftc.lang.quantising import packing_of, packing_problem
from peftc.lang.reading import read_file, read_mapping, read_text
from peftc.lang.roles import CALL_AXES, GROUPS, ROLES, SCOPES, Port, Role, accepts, known_words
from peftc.lang.saved import SavedRule, counted_by, read_from
from peftc.lang.scope import Scope
from peftc.lang.shrunk import Shrunk
from peftc.lang.signature import Signature, signature
from peftc.lang.site_options import SiteOptions
from peftc.lang.source import Place, Source
from peftc.lang.spec import GRAMMAR, PIECES, Layers, Spec, read_layers, read_spec
from peftc.lang.vocabulary import ACTIVATIONS
from peftc.lang.walk import Backend, Walk
from peftc.lang.writing import write

__all__ = [
    "ACTIVATIONS",
    "ANY",
    "CALL_AXES",
    "CODES",
    "COMPUTE",
    "FORMATS",
    "GRAMMAR",
    "GROUPS",
    "LAWS",
    "OPERATIONS",
    "PIECES",
    "POLICIES",
    "ROLES",
    "SCOPES",
    "Axes",
    "AxesError",
    "Backend",
    "Bound",
    "Check",
    "Condition",
    "Constant",
    "Define",
    "Dimension",
    "Expression",
    "Format",
    "Initial",
    "Law",
    "Layers",
    "Library",
    "Loss",
    "Match",
    "MatchChange",
    "Operation",
    "Option",
    "Packing",
    "Parameter",
    "PartSelector",
    "Place",
    "Policy",
    "Port",
    "Quantise",
    "Role",
    "Rule",
    "RuleLike",
    "SavedRule",
    "Schedule",
    "Scope",
    "Section",
    "Setting",
    "Shrunk",
    "Signature",
    "SiteOptions",
    "Source",
    "Spec",
    "Target",
    "Term",
    "Train",
    "Unknown",
    "Use",
    "Walk",
    "accepts",
    "accompanies",
    "behind_fold",
    "bind",
    "bind_all",
    "by_default",
    "check",
    "conditions",
    "contract",
    "counted_by",
    "default_library",
    "flatten",
    "goes_along",
    "grown_by",
    "is_on",
    "known_words",
    "lift_problem",
    "load_rule",
    "meet",
    "numbered",
    "off",
    "packing_of",
    "packing_problem",
    "parse",
    "read_axes",
    "read_dimensions",
    "read_file",
    "read_from",
    "read_initial",
    "read_layers",
    "read_mapping",
    "read_packing",
    "read_spec",
    "read_text",
    "register",
    "register_format",
    "register_policy",
    "share_options",
    "show",
    "sides",
    "signature",
    "unmet",
    "words",
    "write",
]

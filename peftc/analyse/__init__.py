"""From a normalised graph to sites: which part of a model plays which role. Told by data flow, not by names."""

from peftc.analyse.analysis import Analysis, Located, analyse
from peftc.analyse.inputs import GIVEN
from peftc.analyse.residuals import between
from peftc.analyse.site import Convolution, Form, Gather, Port, Routing, Site, Use

__all__ = [
    "GIVEN",
    "Analysis",
    "Convolution",
    "Form",
    "Gather",
    "Located",
    "Port",
    "Routing",
    "Site",
    "Use",
    "analyse",
    "between",
]

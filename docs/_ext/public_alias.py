"""A public name that is another name of something documented elsewhere: `{public-alias} NAME DOCUMENTED-NAME KIND`.

The name is in the inventory and can be linked to, but it never makes a link to the documented one ambiguous.
"""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_id

from linked_contents import ExtensionMetadata


class PublicAlias(SphinxDirective):
    """The directive."""

    required_arguments = 3

    def run(self) -> list[nodes.Node]:
        """Notes the name in the Python domain, and says in a line what it is another name of."""
        name, documented, kind = self.arguments
        node_id = make_id(self.env, self.state.document, "", name)
        target = nodes.target("", "", ids=[node_id])
        self.state.document.note_explicit_target(target)
        self.env.domains.python_domain.note_object(name, kind, node_id, aliased=True, location=target)
        link = addnodes.pending_xref(
            "",
            nodes.literal("", documented),
            refdomain="py",
            reftype="obj",
            reftarget=documented,
            refdoc=self.env.docname,
        )
        sentence = nodes.paragraph("", "", nodes.literal("", name), nodes.Text(" is "), link, nodes.Text("."))
        return [target, sentence]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the extension."""
    app.add_directive("public-alias", PublicAlias)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Reads the HTML pages that f3rm writes."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a page shows, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.cells, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "figcaption", "pre"):
            self.cells.append(data)

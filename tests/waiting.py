"""Claims about a page that are waited for: what a click brings comes when it comes."""


def expect(thing: object, told: str | None = None) -> object:
    """Playwright's `expect`; imported here at the first claim, as tests of no page need none."""
    from playwright.sync_api import expect as claim

    return claim(thing, told)

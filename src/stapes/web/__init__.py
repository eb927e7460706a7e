"""The page on which a browser runs an exported model. Needs the light dependencies only."""

from stapes.web.writing import Page, PageFile, page_files, write_page

__all__ = ["Page", "PageFile", "page_files", "write_page"]

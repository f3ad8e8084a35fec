"""The server: OpenAI's image endpoint, a page, and metrics, on the step-level engine. ``dit-cache serve`` starts it.

FastAPI and uvicorn (the extra ``serve``) are imported by the modules in here, not by this one.
"""

"""A CrossEncoder for libraries that have no place for one: a module a library.

Each imports its library, which xopt does not install. docs/guides/clients.md has the others.
"""

"""Compressed contexts that are kept and asked: documents, a store, chats, a server, its page.

store.py keeps messages in a folder, context.py reads several of them as one cache, decoding.py
generates for rows that join and leave, and server.py puts all of it behind OpenAI's API.
"""

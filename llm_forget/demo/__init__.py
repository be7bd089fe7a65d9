"""The demo: a small model learns facts about invented people, and then unlearns some of them."""

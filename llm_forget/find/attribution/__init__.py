"""One file per way to tell which rows taught a model an answer.

Each holds a frozen dataclass with ``row_scores(model, rows, queries, *, pad_token_id, ...)``, which returns one score per row:
higher for rows that rather taught it. Only the order of the scores matters.
"""

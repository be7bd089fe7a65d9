"""What encoding a set did to its examples: counts for ``result.json``, and warnings for the user."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EncodeReport:
    """Statistics and warnings of an encoded set.

    Attributes:
        role: the set's name, for example ``forget`` or ``retain``.
        examples: number of examples.
        rows: number of rows; more than examples if long ones were cut into parts.
        tokens: number of tokens.
        answer_tokens: number of scored tokens.
        longest: length of the longest example before truncation, in tokens.
        truncated: number of examples truncated at ``max_length``, which have no end token.
        cut_tokens: tokens that were cut from them. Of a text too long to be tokenised as a whole it is an estimate.
        chunked: number of examples that were cut into several rows.
        split_boundaries: number of answers that were tokenised separately from their prompt, because a token would span
            the boundary otherwise.
        template_fallbacks: number of answers that were appended to the prompt directly, because the template does not write
            them after its own generation prompt.
        closed_blocks: number of answers before which a block for thoughts is closed that the template's prompt opens.
        warnings: warnings for the user.
        owners: for each row, the index of its example.
    """

    role: str
    examples: int
    rows: int
    tokens: int
    answer_tokens: int
    longest: int
    truncated: int
    cut_tokens: int
    chunked: int
    split_boundaries: int
    template_fallbacks: int
    closed_blocks: int
    warnings: tuple[str, ...] = ()
    owners: tuple[int, ...] = field(default=(), repr=False)

    def counts(self) -> dict[str, int]:
        """The numbers, for ``result.json``."""
        left_out = ("role", "warnings", "owners")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def warnings_about(report: EncodeReport, *, max_length: int, special: int, dated: bool) -> tuple[str, ...]:
    """Warnings about an encoded set, without any text of the data.

    Args:
        report: the counts.
        max_length: the longest row in tokens.
        special: number of examples that hold the text of a special token.
        dated: whether the chat template writes today's date.
    """
    of = f"of {report.examples} examples of the {report.role} set"
    warnings = []
    if report.truncated:
        whole = report.tokens + report.cut_tokens
        warnings.append(
            f"{report.truncated} {of} were truncated at max_length {max_length}: {report.cut_tokens:,} of {whole:,} tokens "
            f"({report.cut_tokens / whole:.0%}) were cut and are left out; to use them raise max_length, or set chunk: true "
            "instead of truncate"
        )
    if report.chunked:
        warnings.append(
            f"{report.chunked} {of} are longer than max_length {max_length} and were cut into parts, {report.rows} rows in all"
        )
    if report.template_fallbacks:
        warnings.append(
            f"{report.template_fallbacks} {of} have an answer that the chat template changes or writes elsewhere (thoughts, "
            "for example); it was put after the prompt as it is: check that the model expects this, or set chat_template: false"
        )
    if report.closed_blocks:
        warnings.append(
            f"the chat template opens a block for thoughts in the prompt; {report.closed_blocks} {of} have an answer without "
            "thoughts, and the block is closed before it"
        )
    if report.split_boundaries:
        warnings.append(
            f"{report.split_boundaries} {of} have an answer that was tokenised apart from its prompt, as generation does, "
            "because one token would hold parts of both"
        )
    if special:
        warnings.append(
            f"{special} {of} hold the text of a special token (such as the end "
            "token), which is encoded as that token: remove it from the text unless this is intended"
        )
    if dated:
        warnings.append(
            "the chat template writes today's date into the prompt, so that runs of different days see different "
            "prompts: set encoding.date"
        )
    return tuple(warnings)

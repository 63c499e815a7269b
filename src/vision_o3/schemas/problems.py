"""The shape of every error answer: RFC 9457, with a stable code."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """One thing that was wrong with a request."""

    where: str = Field(description="The part and name, such as `query.page_size`.")
    message: str


class Problem(BaseModel):
    """A problem document; some codes add members with facts, such as `expected`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(default="about:blank", description="Always `about:blank`.")
    title: str = Field(description="The status in words.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What was wrong, and what to do.")
    code: str = Field(description="Stable, for programs; never reused.")
    request_id: str = Field(description="Quote it when asking the operator.")
    errors: list[FieldError] | None = Field(
        default=None, description="Each thing that was wrong, for `invalid_input`."
    )

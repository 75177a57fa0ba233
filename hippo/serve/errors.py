"""What a client is answered when a request fails, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from hippo.errors import BadRequest, Busy, HippoError, MediaError, OutOfMemory

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    503: "ServiceUnavailableError",
}
_STATUS: dict[type[HippoError], int] = {BadRequest: 400, MediaError: 400, OutOfMemory: 413, Busy: 503}
RETRY_SECONDS = 1


class ApiError(Exception):
    """status: of HTTP. message: one line for the client. param: the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = _TYPES.get(self.status, "InternalServerError")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.body, self.status, headers)


def explained(error: Exception, hidden: tuple[str, ...] = ()) -> ApiError:
    """An error of the library as the client may see it. hidden: paths that its message must not show."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, HippoError):
        return ApiError(500, "The server failed to answer this request.")
    message = str(error)
    for path in hidden:
        message = message.replace(path, "the video")
    return ApiError(next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500), message)

/*
 * Feedback from web pages, without dependencies. Serve it from the gateway (`/v1/feedback.js`) or
 * copy it. The token is the header `x-thrifty-feedback-token` of an answer; it permits feedback on
 * that answer alone, so no API key reaches the browser.
 *
 *   import { Feedback } from "https://llm.example.com/v1/feedback.js";
 *   const answer = await fetch(...);
 *   const feedback = Feedback.of(answer, "https://llm.example.com");
 *   await feedback.send({ thumbs: "up" });
 *   feedback.watchCopying(document.querySelector("#answer"));
 */

const HEADER = "x-thrifty-feedback-token";
const RETRIES = 3;

export class FeedbackError extends Error {
  /** `status` is the HTTP status, `code` the error's short name. */
  constructor(status, code, message) {
    super(message);
    this.name = "FeedbackError";
    this.status = status;
    this.code = code;
  }
}

export class Feedback {
  /** `base` is the gateway's address; `responseId` and `token` come with an answer. */
  constructor(base, responseId, token) {
    this.url = `${base.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1/feedback`;
    this.responseId = responseId;
    this.token = token;
  }

  /** The feedback on a fetched answer of the gateway; null where it carries no token. */
  static of(answer, base = new URL(answer.url).origin) {
    const token = answer.headers.get(HEADER);
    const id = answer.headers.get("x-thrifty-response-id");
    return token && id ? new Feedback(base, id, token) : null;
  }

  /**
   * Send feedback: thumbs ("up" or "down"), rating (1 to 5), category, comment, correction, event,
   * name with value, tags, id. Resolves to what the gateway says of it; rejects with FeedbackError.
   * Also sent when the page closes. While the gateway is busy it is sent again, which changes
   * nothing: the same feedback counts once.
   */
  async send(fields) {
    const request = {
      method: "POST",
      headers: { "content-type": "application/json", [HEADER]: this.token },
      body: JSON.stringify({ ...fields, response_id: this.responseId }),
      credentials: "omit",
    };
    request.keepalive = request.body.length < 60000;
    for (let turn = 1; ; turn++) {
      const answer = await fetch(this.url, request);
      const body = await answer.json().catch(() => ({}));
      if (answer.ok) return body;
      if (answer.status !== 503 || turn === RETRIES) {
        const error = body.error ?? {};
        throw new FeedbackError(answer.status, error.code, error.message ?? answer.statusText);
      }
      await new Promise((resolve) => setTimeout(resolve, 1000 * turn));
    }
  }

  /** Report an event: copied, regenerated, edited, abandoned or followed_up. Never rejects. */
  note(event) {
    return this.send({ event }).catch(() => null);
  }

  /** Report once that text of `element` was copied. */
  watchCopying(element) {
    element.addEventListener("copy", () => this.note("copied"), { once: true });
  }
}

// Answers of models as HTML. A model may write anything, so its text is taken for hostile:
//   1. raw HTML in it is escaped by the Markdown reader, before anything parses it as HTML;
//   2. images become their text, and links go to web addresses only, so that nothing is fetched;
//   3. what results passes the sanitizer, whose Trusted Types policy is the only one allowed.
// Without the first step nothing would run either, but parsing hostile markup raises reports of the
// content security policy.
import { DOMPurify, html, Marked, useMemo } from "./vendor.js";

const escape = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
const isWeb = (href) => /^(https?:\/\/|mailto:)/i.test(href ?? "");

const reader = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => escape(text ? `${text} (${href})` : href),
    link({ href, tokens }) {
      const inner = this.parser.parseInline(tokens);
      if (!isWeb(href)) return inner;
      return `<a href="${escape(href)}" rel="noopener noreferrer nofollow" target="_blank">${inner}</a>`;
    },
    code: ({ text, lang }) => `<pre tabindex="0"><code>${escape(text)}</code></pre>${
      lang ? `<small>${escape(lang)}</small>` : ""}`,
  },
});

const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6",
    "hr", "li", "ol", "p", "pre", "small", "strong", "table", "tbody", "td", "th", "thead", "tr",
    "ul"],
  ALLOWED_ATTR: ["href", "rel", "target", "start", "tabindex"],
  RETURN_TRUSTED_TYPE: true,
};
const MAX_CHARS = 200_000;

export function toSafeHtml(text) {
  return DOMPurify.sanitize(reader.parse(text.slice(0, MAX_CHARS)), ALLOWED);
}

export function Markdown({ text }) {
  const safe = useMemo(() => toSafeHtml(text), [text]);
  return html`<div class="markdown" dangerouslySetInnerHTML=${{ __html: safe }}></div>`;
}

// What the console's own modules import from `vendor.js`, and nothing else.
import DOMPurify from "dompurify";
import htm from "htm";
import { h } from "preact";

export { render, Component, Fragment, createRef } from "preact";
export { useEffect, useLayoutEffect, useRef, useState, useMemo, useCallback } from "preact/hooks";
export { signal, computed, effect, batch, useSignal, useComputed } from "@preact/signals";
export { Marked } from "marked";
export { default as uPlot } from "uplot";
export { DOMPurify, h };
export const html = htm.bind(h);

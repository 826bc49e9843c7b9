// The console's frame: signing in, navigation, and the page that the address names.
import { Component, html, render, useEffect, useRef, useState } from "./vendor.js";
import {
  connection, followEvents, may, readSession, session, signIn, signOut, status, url,
} from "./api.js";
import { announcement, Failure } from "./parts.js";
import { link, route } from "./router.js";
import { switchTheme, theme } from "./theme_state.js";
import { Overview } from "./overview.js";

/** The pages: name, title, role, and how the module is loaded; `Overview` is there at once. */
const PAGES = [
  { name: "overview", title: "Overview", role: "viewer", page: Overview },
  { name: "deployments", title: "Deployments", role: "viewer", load: () => import("./deployments.js") },
  { name: "releases", title: "Releases", role: "viewer", load: () => import("./releases.js") },
  { name: "improve", title: "The loop", role: "viewer", load: () => import("./improve.js") },
  { name: "alerts", title: "Alerts", role: "viewer", load: () => import("./alerts.js") },
  { name: "requests", title: "Requests", role: "user", load: () => import("./requests.js") },
  { name: "playground", title: "Playground", role: "user", load: () => import("./playground.js") },
  { name: "feedback", title: "Feedback", role: "user", load: () => import("./feedback.js") },
  { name: "quality", title: "Quality", role: "viewer", load: () => import("./quality.js") },
  { name: "models", title: "Models", role: "viewer", load: () => import("./models.js") },
  { name: "cost", title: "Cost", role: "viewer", load: () => import("./cost.js") },
  { name: "keys", title: "Keys and budgets", role: "admin", load: () => import("./keys.js") },
  { name: "audit", title: "Audit", role: "admin", load: () => import("./audit.js") },
  { name: "settings", title: "Settings", role: "operator", load: () => import("./settings.js") },
];

function App() {
  const [error, setError] = useState(null);
  useEffect(() => {
    readSession().then(followEvents, setError);
  }, []);
  if (error) {
    return html`<main class="alone"><${Failure} error=${error}
      again=${() => location.reload()} /></main>`;
  }
  if (session.value === null) return html`<p class="boot">Loading the console …</p>`;
  if (session.value.keys_exist && session.value.role === null) return html`<${SignIn} />`;
  return html`<${Frame} />`;
}

/** Why an identity provider signed nobody in, by the code in the address. */
const NOT_SIGNED_IN = {
  denied: "The provider did not let you sign in.",
  expired: "This sign-in took too long, or was begun in another window. Try again.",
  no_role: "You are known to the provider, and have no role here. Ask an administrator.",
  unreachable: "The provider could not be reached. Try again in a while.",
  failed: "Signing in failed. The service's log says why.",
};

function SignIn() {
  const why = NOT_SIGNED_IN[new URLSearchParams(location.search).get("sign-in")];
  const [error, setError] = useState(null);
  const { provider } = session.value;
  const [busy, setBusy] = useState(false);
  useEffect(() => { document.title = "Sign in · Thrifty"; }, []);
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await signIn(new FormData(event.target).get("key").trim());
      followEvents();
    } catch (fault) {
      setError(fault);
      setBusy(false);
    }
  };
  return html`<main class="alone"><form class="card signin" onSubmit=${send}>
    <${Logo} />
    <h1>Sign in</h1>
    ${why && !error && html`<${Failure} error=${new Error(why)} />`}
    ${provider && html`<a role="button" href=${url("console/sign-in").href}>Sign in with
      ${" "}${provider}</a>`}
    <p class="quiet">${provider ? "Or with" : "With"} an API key of this service. It is exchanged for
      a cookie that scripts cannot read and that ends after twelve hours.</p>
    <label>API key
      <input name="key" type="password" required autocomplete="current-password"
        aria-invalid=${error ? "true" : undefined} aria-describedby="key-help" /></label>
    <small id="key-help"><code>thrifty keys create --name NAME --role operator</code> makes
      one.</small>
    ${error && html`<${Failure} error=${error} />`}
    <button type="submit" class=${provider ? "secondary" : ""} aria-busy=${busy}
      disabled=${busy}>Sign in${provider ? " with the key" : ""}</button>
  </form></main>`;
}

const Logo = () => html`<span class="logo" aria-hidden="true"><svg viewBox="0 0 32 32">
  <rect width="32" height="32" rx="8" /><path d="M7 9h18v4h-7v12h-4V13H7z" />
  <circle cx="23" cy="22" r="3" /></svg>Thrifty</span>`;

function Frame() {
  const [open, setOpen] = useState(false);
  const allowed = PAGES.filter((page) => may(page.role));
  const { page: name } = route.value;
  const found = PAGES.find((page) => page.name === name);
  const current = found && may(found.role) ? found : name === "overview" ? allowed[0] : null;
  const heading = useRef(null);
  const first = useRef(true);
  const title = current?.title ?? "Not found";
  useEffect(() => {
    document.title = `${title} · Thrifty`;
    setOpen(false);
    // Whoever follows a link by keyboard or screen reader starts at the new page.
    if (first.current) first.current = false;
    else heading.current?.focus();
  }, [name, title]);
  return html`<a class="skip" href="#main" onClick=${(event) => {
    event.preventDefault();
    heading.current?.focus();
  }}>Skip to the page</a>
  <div class="frame">
    <div class="topbar">
      <button type="button" class="menu" aria-expanded=${open ? "true" : "false"}
        aria-controls="nav" onClick=${() => setOpen(!open)}><span aria-hidden="true">☰</span>
        <span class="hidden">Menu</span></button>
      <${Logo} />
    </div>
    <nav id="nav" class=${open ? "open" : ""} aria-label="Pages">
      <${Logo} />
      <ul>${allowed.map((page) => html`<li key=${page.name}><a href=${link(page.name)}
        aria-current=${page === current ? "page" : undefined}>${page.title}</a></li>`)}</ul>
      <${Person} />
    </nav>
    <main id="main">
      <div class="pagehead"><h1 tabindex="-1" ref=${heading}>${title}</h1><${Connection} /></div>
      ${current ? html`<${Boundary} key=${current.name}><${Page} page=${current} /></${Boundary}>`
        : html`<p>There is no page of this name for your key.
          <a href=${link(allowed[0]?.name ?? "overview")}>Go to the first one</a>.</p>`}
    </main>
  </div>
  <div class="hidden" role="status" aria-live="polite">${announcement.value}</div>`;
}

/** A page that throws says so in its place, and the rest of the console goes on. */
class Boundary extends Component {
  static getDerivedStateFromError(error) { return { error }; }

  render({ children }, { error }) {
    if (!error) return children;
    console.error(error);
    return html`<${Failure} error=${new Error(`This page met a fault: ${error.message}`)}
      again=${() => this.setState({ error: null })} />`;
  }
}

function Page({ page }) {
  const [Loaded, setLoaded] = useState(() => page.page ?? page.found ?? null);
  const [error, setError] = useState(null);
  useEffect(() => {
    if (Loaded) return;
    page.load().then(
      (module) => {
        page.found = module.default;
        setLoaded(() => module.default);
      },
      () => setError(new Error("This page could not be loaded. If the service was updated, load "
        + "the console again.")),
    );
  }, [page]);
  if (error) return html`<${Failure} error=${error} again=${() => location.reload()} />`;
  if (!Loaded) return html`<div class="skeleton" role="status" aria-label="Loading"><span></span></div>`;
  return html`<${Loaded} ...${route.value} />`;
}

const STATES = {
  live: ["good", "Live"], connecting: ["busy", "Connecting"],
  away: ["bad", "Database away"], lost: ["bad", "Reconnecting"],
};

function Connection() {
  if (!may("viewer")) return null;
  const [tone, text] = STATES[connection.value];
  return html`<span class="live ${tone}" role="status"><span class="dot" aria-hidden="true"></span>
    ${text}</span>`;
}

function Person() {
  const { name, role, keys_exist: keys, version } = session.value;
  const other = theme.value === "dark" ? "light" : "dark";
  return html`<div class="person">
    <p>${keys ? html`<strong>${name.replace(/^oidc:/, "")}</strong><br /><span class="quiet">${role}</span>`
      : html`<span class="quiet">No keys: open to this machine</span>`}</p>
    <button type="button" class="plain" onClick=${switchTheme}>Use the ${other} theme</button>
    ${keys && html`<button type="button" class="plain" onClick=${signOut}>Sign out</button>`}
    <p class="quiet small">Thrifty ${version} · <a href="docs">API</a></p>
  </div>`;
}

// A replica that is lost or comes back is told once, in words.
const states = new Map();
status.subscribe((value) => {
  if (!value) return;
  for (const deployment of value.deployments) {
    for (const replica of deployment.replicas) {
      const before = states.get(replica.id);
      if (before !== undefined && before !== replica.state) {
        announcement.value = `Replica ${replica.id} is ${replica.state.replace(/_/g, " ")}.`;
      }
      states.set(replica.id, replica.state);
    }
  }
});

render(html`<${App} />`, document.getElementById("app"));

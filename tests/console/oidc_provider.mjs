// node-oidc-provider (npm) with one client, for the browser's tests: PKCE is required, claims come from
// userinfo, and the login page takes any password. Arguments: port, redirect URI, the signing key's id.
import { generateKeyPairSync } from "node:crypto";
import * as oidc from "oidc-provider";

const [port, redirect, kid] = process.argv.slice(2);
const Provider = oidc.Provider ?? oidc.default;
const PEOPLE = { ann: ["ml-ops"], rob: ["platform"], eve: [] };

const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: "thrifty", client_secret: "client-secret-for-tests", redirect_uris: [redirect],
    grant_types: ["authorization_code"], response_types: ["code"],
  }],
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), kid, use: "sig", alg: "RS256" }] },
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"], email: ["email"] },
  findAccount: (context, id) => ({
    accountId: id,
    claims: () => ({
      sub: id, preferred_username: id, groups: PEOPLE[id] ?? [], email: `${id}@example.com`,
    }),
  }),
  pkce: { required: () => true },
  cookies: { keys: ["for-tests"] },
  features: { devInteractions: { enabled: true } },
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));

import type { Context } from 'hono';
import { html, raw } from 'hono/html';
import type { OpenApiDocument, Operation } from './openapi.ts';

const STYLE = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 56rem; margin: 0 auto; padding: 1rem; }
summary { cursor: pointer; padding: .3rem 0; }
summary code { font-weight: 600; }
pre { overflow: auto; padding: .75rem; border: 1px solid; border-radius: .3rem; font-size: .85rem; }
`;

/** GET /docs: the document as a page of its own, without any script. */
export async function getDocs(c: Context, document: OpenApiDocument): Promise<Response> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(STYLE)));
  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => section(method, path, operation)),
  );
  const page = await html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${document.info.title} API</title>
<style>${raw(STYLE)}</style>
</head>
<body>
<main>
<h1>${document.info.title} API</h1>
<p>${document.info.description} <a href="/openapi.json">openapi.json</a></p>
${operations}
</main>
</body>
</html>
`;
  return c.html(page, 200, {
    'content-security-policy': `default-src 'none'; style-src 'sha256-${btoa(String.fromCharCode(...digest))}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
    'referrer-policy': 'no-referrer',
  });
}

function section(method: string, path: string, operation: Operation) {
  const [type, body] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
  const query = (operation.parameters ?? []).filter((parameter) => parameter.in === 'query');
  return html`<details>
<summary><code>${method.toUpperCase()} ${path}</code> ${operation.summary}${operation.security?.length === 0 ? ' (public)' : ''}</summary>
${operation.description ? html`<p>${operation.description}</p>` : ''}
${query.length > 0 ? html`<p>Query:</p><pre>${JSON.stringify(Object.fromEntries(query.map(({ name, schema }) => [name, schema])), null, 2)}</pre>` : ''}
${body ? html`<p>Body: <code>${type}</code></p><pre>${JSON.stringify(body.schema, null, 2)}</pre>` : ''}
<p>Answers: <code>${Object.keys(operation.responses).join(', ')}</code></p>
</details>
`;
}

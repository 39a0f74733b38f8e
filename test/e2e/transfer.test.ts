import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import { localSessions } from '../../src/cli/local-sessions.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { createApp } from '../../src/http/app.ts';
import { servedModel } from '../../src/http/models.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { readManifest } from '../../src/runtime/model.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';
import { prose } from '../helpers/turns.ts';

/** One conversation on two kinds of host: the Worker in workerd, and Node over SQLite files. */
let tiny: TinyServed;
let server: TestServer;
let folder: string;
let node: ReturnType<typeof createApp>;
let close: () => void;

beforeAll(async () => {
  tiny = await tinyServed({ context: 4_096 });
  server = await startServer({ dataDir: tiny.dataDir, assetsDir: tiny.assetsDir });
  folder = mkdtempSync(join(tmpdir(), 'adkvc-other-'));
  const source = folderSource(tiny.bundleDir);
  const engine = await loadEngine({ source, kernels: await loadWasmKernels(256e6) });
  const host = await localSessions(engine, folder);
  close = () => host.close();
  const model = servedModel(await readManifest(source));
  node = createApp({ host, auth: { anonymous: true }, loadModel: async () => model });
});
afterAll(async () => {
  await server?.stop();
  close?.();
  rmSync(folder, { recursive: true, force: true });
  await tiny?.remove();
});

type Call = (path: string, init?: RequestInit) => Promise<Response>;
const onWorkerd: Call = (path, init) => fetch(server.url + path, init);
const onNode: Call = async (path, init) =>
  node.request(`http://localhost${path}`, { ...init, headers: { host: 'localhost', ...init?.headers } });

async function ok(response: Response): Promise<Response> {
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return response;
}
const post = async (call: Call, path: string, body: unknown): Promise<any> =>
  (
    await ok(
      await call(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      }),
    )
  ).json();

/** One turn, hot, so that the slightest change of logits is heard: its text, and how much of the prompt was reused. */
async function turn(call: Call, id: string, content: string): Promise<[string, number]> {
  const answer = await post(call, '/v1/chat/completions', {
    model: tiny.modelId,
    session_id: id,
    session_append: true,
    messages: [{ role: 'user', content }],
    temperature: 2,
    top_p: 1,
    seed: 7,
    max_tokens: 40,
  });
  const { prompt_tokens, prompt_tokens_details } = answer.usage;
  return [answer.choices[0].message.content, prompt_tokens - prompt_tokens_details.cached_tokens];
}

async function move(from: Call, to: Call, id: string, as: string): Promise<number> {
  const exported = await ok(await from(`/v1/sessions/${id}/export`));
  const file = await exported.bytes();
  const init = { method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: file };
  await ok(await to(`/v1/sessions/import?id=${as}`, init));
  return file.length;
}

test('exported from workerd, imported into Node, and back: the same tokens, nothing fed again', async () => {
  await turn(onWorkerd, 'a', prose(900, 1));
  const bytes = await move(onWorkerd, onNode, 'a', 'b');
  const here = await turn(onWorkerd, 'a', prose(200, 2));
  const there = await turn(onNode, 'b', prose(200, 2));
  expect(there).toEqual(here);
  expect(there[1]).toBeLessThan(400);
  await move(onNode, onWorkerd, 'b', 'c');
  expect(await turn(onWorkerd, 'c', 'And now?')).toEqual(await turn(onWorkerd, 'a', 'And now?'));
  const forked = await post(onWorkerd, '/v1/sessions/c/fork', { id: 'd' });
  expect(forked).toMatchObject({ id: 'd', turns: 3 });
  expect(await turn(onWorkerd, 'd', 'More?')).toEqual(await turn(onWorkerd, 'a', 'More?'));
  console.log(`one conversation, ${bytes} bytes exported`);

  const listed: any = await (await ok(await onWorkerd('/v1/sessions'))).json();
  expect(listed.data.map((one: any) => one.id)).toEqual(['d', 'c', 'a']);
  await ok(await onWorkerd('/v1/sessions/c', { method: 'DELETE' }));
  const left: any = await (await ok(await onWorkerd('/v1/sessions'))).json();
  expect(left.data.map((one: any) => one.id)).toEqual(['d', 'a']);
  const map: any = await (await ok(await onWorkerd('/v1/sessions/d/cache?layer=0'))).json();
  expect(map.data[0].segments.length).toBeGreaterThan(5);
});

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Chart, charts, leftOutLayers, relevanceLayers } from './charts.ts';
import { lostAnswers, lostTable } from './lost.ts';
import {
  chanceNote,
  comparisonTable,
  costTable,
  failures,
  markdownReport,
  number,
  provenance,
  scoreTable,
  type Table,
  titleOf,
} from './markdown.ts';
import { meanInterval } from './metrics/interval.ts';
import { renderSvg } from './render.ts';
import type { Row } from './rows.ts';
import { type Section, summarise } from './summary.ts';

/** Writes report.md and report.html, which needs nothing beside itself, into the folder. */
export async function writeReport(rows: readonly Row[], folder: string): Promise<void> {
  const sections = summarise(rows);
  const extra = analysisTables(sections);
  const drawn = await Promise.all(
    charts(sections).map(async (chart) => ({ chart, svg: await renderSvg(chart) })),
  );
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'report.md'), markdownReport(rows, sections, extra));
  await writeFile(join(folder, 'report.html'), htmlReport(rows, sections, extra, drawn));
}

type Extra = { title: string; note: string; table: Table };

function analysisTables(sections: readonly Section[]): Extra[] {
  return sections.flatMap((section): Extra[] => {
    if (section.task.name === 'needle-relevance')
      return [
        {
          title: `By layer: ${titleOf(section)}`,
          note: "Relevance of the needle's tokens before the question (the head's mean is 1), the share of tokens they outrank, and how far the layer's relevance is spread.",
          table: {
            head: ['layer', 'needle relevance', 'outranked, %', 'median', '90 %', '99 %'],
            body: relevanceLayers(section).map((l, layer) => [
              `${layer}`,
              number(l.needle),
              number(l.percentile * 100),
              number(l.quantiles[1]!),
              number(l.quantiles[2]!),
              number(l.quantiles[3]!),
            ]),
          },
        },
      ];
    if (section.task.name === 'leave-one-out')
      return [
        {
          title: `By layer: ${titleOf(section)}`,
          note: 'Does a block that attention favoured cost more when it is left out? Rank correlation over blocks, and the largest rise of the loss that a single block of this layer caused.',
          table: {
            head: ['layer', 'rank correlation', '95 %', 'largest rise, nats'],
            body: leftOutLayers(section).map((l) => {
              const e = meanInterval(l.correlations);
              return [
                `${l.layer}`,
                number(e.mean),
                Number.isNaN(e.low) ? '–' : `[${number(e.low)}, ${number(e.high)}]`,
                number(l.worst),
              ];
            }),
          },
        },
      ];
    const table = lostTable(section);
    if (!table) return [];
    return [
      {
        title: `Lost answers: ${titleOf(section)}`,
        note: `${lostAnswers(section).length} samples that the full cache answers and the method does not (their score falls by half or more); ten a method at most are shown.`,
        table,
      },
    ];
  });
}

const plain = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

const warning = (note: string | undefined): string =>
  note === undefined ? '' : `<p class="warn">${plain(note)}</p>`;

function htmlTable({ head, body }: Table): string {
  const line = (tag: string, cells: readonly string[]): string =>
    `<tr>${cells.map((c) => `<${tag}>${plain(c)}</${tag}>`).join('')}</tr>`;
  return `<div class="wide"><table${body.some((line) => line.some((c) => c.startsWith('"'))) ? ' class="text"' : ''}><thead>${line('th', head)}</thead><tbody>${body.map((b) => line('td', b)).join('\n')}</tbody></table></div>`;
}

const STYLE = `
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #d5dbe3; padding-top: 1.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8rem 0; font-size: 13px; }
th, td { border: 1px solid #d5dbe3; padding: 3px 8px; text-align: right; white-space: nowrap; } th { background: #f3f6fa; white-space: normal; }
th:first-child, td:first-child, .text td { text-align: left; } .text td { white-space: normal; } .note { color: #56616f; } .warn { background: #fff3cd; padding: 0.4rem 0.7rem; }
figure { margin: 1.2rem 0; } figcaption { color: #56616f; } svg { max-width: 100%; height: auto; }`;

function htmlReport(
  rows: readonly Row[],
  sections: readonly Section[],
  extra: readonly Extra[],
  drawn: readonly { chart: Chart; svg: string }[],
): string {
  const figures = drawn.map(
    ({ chart, svg }) =>
      `<figure><h3>${plain(chart.title)}</h3>${svg}<figcaption>${plain(chart.caption)}</figcaption></figure>`,
  );
  const parts = sections.map(
    (
      s,
    ) => `<h2>${plain(titleOf(s))}</h2><p>${plain(s.task.description)}.<br><span class="note">${plain(s.setting)}</span></p>
${warning(chanceNote(s))}${htmlTable(scoreTable(s))}${[comparisonTable(s)].map((t) => (t ? htmlTable(t) : '')).join('')}${htmlTable(costTable(s))}`,
  );
  const analyses = extra.map((e) => `<h2>${plain(e.title)}</h2><p>${plain(e.note)}</p>${htmlTable(e.table)}`);
  const failed = failures(rows);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of cache compression</title><style>${STYLE}</style></head><body>
<h1>Evaluation of cache compression</h1>
<p class="note">${provenance(rows).map(plain).join('<br>')}</p>
${parts.join('\n')}
${analyses.join('\n')}
<h2>Charts</h2>
${figures.join('\n')}
${failed.length > 0 ? `<h2>Not scored</h2><ul>${failed.map((f) => `<li>${plain(f)}</li>`).join('')}</ul>` : ''}
</body></html>
`;
}

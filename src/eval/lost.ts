import type { Table } from './markdown.ts';
import type { Row } from './rows.ts';
import type { Section } from './summary.ts';

/** Of one method, so that a report stays readable. */
const MOST = 10;
/** Characters of an answer. */
const LENGTH = 80;
/** A score of 0 to 1 that is lower by so much is a lost answer. */
const LOST = 0.5;

/** A sample that the full cache answers and a compressed one does not. */
interface Lost {
  readonly method: string;
  readonly row: Row;
  readonly full: Row;
}

/** What compression got wrong, shown: samples whose first metric is worse than the full cache's by half of it or more. */
export function lostAnswers(section: Section): Lost[] {
  const { name, kind } = section.task.metrics[0]!;
  if (kind !== 'rate' && kind !== 'percent') return [];
  const reference = new Map(
    section.summaries
      .filter((s) => s.policy === 'full')
      .flatMap((s) => s.rows)
      .map((row) => [`${row.sample}/${row.seed}`, row]),
  );
  return section.summaries.flatMap(({ method, rows }) =>
    rows.flatMap((row): Lost[] => {
      const full = reference.get(`${row.sample}/${row.seed}`);
      const [own, right] = [row.scores?.[name], full?.scores?.[name]];
      return full && own !== undefined && right !== undefined && right - own >= LOST
        ? [{ method, row, full }]
        : [];
    }),
  );
}

const said = ({ detail }: Row): string => {
  const text = detail?.prediction ?? (detail?.predictions as string[] | undefined)?.[0];
  return text === undefined ? '–' : cut(JSON.stringify(text));
};
const cut = (text: string): string => (text.length > LENGTH ? `${text.slice(0, LENGTH)} …` : text);

/** The first of them by method, as a table; undefined where nothing was lost. */
export function lostTable(section: Section): Table | undefined {
  const all = lostAnswers(section);
  if (all.length === 0) return undefined;
  const shown = new Map<string, number>();
  return {
    head: ['method', 'sample', 'depth', 'wanted', 'the full cache said', 'it said'],
    body: all.flatMap(({ method, row, full }) => {
      const n = (shown.get(method) ?? 0) + 1;
      shown.set(method, n);
      if (n > MOST) return [];
      const { depth, answers } = row.detail ?? {};
      return [
        [
          method,
          `${row.sample}${row.seed === 0 ? '' : `, seed ${row.seed}`}`,
          typeof depth === 'number' ? `${Math.round(depth * 100)} %` : '–',
          cut((answers as string[] | undefined)?.join(' | ') ?? '–'),
          said(full),
          said(row),
        ],
      ];
    }),
  };
}

import type { Task } from './task.ts';
import { babilongTasks } from './tasks/babilong.ts';
import { code } from './tasks/code.ts';
import { locomoTurns, qmsumTurns } from './tasks/dialogues.ts';
import { kvRetrievalTasks } from './tasks/kv-retrieval.ts';
import { leaveOneOut } from './tasks/leave-one-out.ts';
import { longBenchTasks } from './tasks/longbench.ts';
import { needleTasks } from './tasks/needle.ts';
import { needleRelevance } from './tasks/needle-relevance.ts';
import { pg19, wikitext2 } from './tasks/perplexity.ts';

/** To add a task: one file in tasks/, one line here. */
const ALL: readonly Task[] = [
  pg19,
  wikitext2,
  ...needleTasks,
  ...longBenchTasks,
  ...babilongTasks,
  ...kvRetrievalTasks,
  qmsumTurns,
  locomoTurns,
  code,
  needleRelevance,
  leaveOneOut,
];

export const TASKS: Readonly<Record<string, Task>> = Object.fromEntries(ALL.map((task) => [task.name, task]));

import type { Row } from './rows.ts';
export async function writeReport(_rows: readonly Row[], _folder: string): Promise<void> {}

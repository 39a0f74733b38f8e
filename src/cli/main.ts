#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import { benchCommand } from './bench.ts';
import { calibrateCommand } from './calibrate.ts';
import { chatCommand } from './chat.ts';
import { evaluateCommand } from './evaluate.ts';
import { generateCommand } from './generate.ts';
import { prepareCommand } from './prepare.ts';
import { renderCommand } from './render.ts';
import { scoreCommand } from './score.ts';
import { serveCommand } from './serve.ts';
import { tokenizeCommand } from './tokenize.ts';

/** Exit codes: 0, 1 when a command or a line failed, 2 when the command line is wrong. */
const FAILED = 1;
const USAGE = 2;

const program = new Command('adkvc')
  .description('a long conversation with a small language model, its cache compressed')
  .showHelpAfterError('(adkvc --help lists the commands)')
  .exitOverride();

prepareCommand(program);
tokenizeCommand(program);
renderCommand(program);
scoreCommand(program);
generateCommand(program);
benchCommand(program);
calibrateCommand(program);
chatCommand(program);
serveCommand(program);
evaluateCommand(program);

// A reader that has seen enough (`| head`) closes the pipe: that is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCode(error);
}

function exitCode(error: unknown): number {
  // Commander has printed its message already.
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
  if (error instanceof AdkvcError) {
    process.stderr.write(`error: ${error.message}\n`);
    return error instanceof InvalidInputError ? USAGE : FAILED;
  }
  process.stderr.write(`${error instanceof Error ? error.stack : error}\n`);
  return FAILED;
}

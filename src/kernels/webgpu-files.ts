import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { SHADER_FILES, type ShaderSources } from './webgpu.ts';

/** The shaders of a folder, for hosts that have files. */
export const shadersFrom = (folder: string): ShaderSources =>
  Object.fromEntries(
    SHADER_FILES.map((name) => [name, readFileSync(join(folder, `${name}.wgsl`), 'utf8')]),
  ) as ShaderSources;

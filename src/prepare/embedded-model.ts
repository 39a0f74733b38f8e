/** The default model, committed under models/ (its README tells origin and licence). */
export const EMBEDDED_MODEL = {
  /** Relative to the project's root. */
  file: 'models/SmolLM2-135M-Instruct.Q4_1.gguf',
  /** Made by `adkvc calibrate`. */
  profile: 'models/SmolLM2-135M-Instruct.profile.json',
  name: 'SmolLM2-135M-Instruct',
  bytes: 98_362_432,
  sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
  /** As its model card recommends; at temperature 1 a model of this size babbles. https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct */
  generation: { temperature: 0.2, topP: 0.9, maxTokens: 512 },
} as const;

/** Used for every other model that does not bring its own. */
export const DEFAULT_GENERATION = { temperature: 0.7, topP: 0.95, maxTokens: 512 } as const;

import { fromF16, halvesToFloats } from './half';

/** Scales of 1 to 4 bits as codes of a byte under a record's base; the TypeScript twin is src/kernels/cache-math.ts. */

/** 2^(j / 32). */
const OCTAVE: usize = memory.data<f32>(
  [
    1.0, 1.0218971486541166, 1.0442737824274138, 1.0671404006768237,
    1.0905077326652577, 1.1143867425958924, 1.1387886347566916, 1.1637248587775775,
    1.189207115002721, 1.215247359980469, 1.241857812073484, 1.2690509571917332,
    1.2968395546510096, 1.3252366431597413, 1.3542555469368927, 1.383909881963832,
    1.4142135623730951, 1.4451808069770467, 1.4768261459394993, 1.5091644275934228,
    1.5422108254079407, 1.5759808451078865, 1.6104903319492543, 1.645755478153965,
    1.681792830507429, 1.718619298122478, 1.7562521603732995, 1.7947090750031072,
    1.8340080864093424, 1.8741676341103, 1.9152065613971474, 1.9571441241754002,
  ],
  16,
);
/** 2^((j + 1/2) / 32): where the nearest scale changes. */
const EDGES: usize = memory.data<f32>(
  [
    1.0108892860517005, 1.0330248790212284, 1.0556451783605572, 1.0787607977571199,
    1.102382583307841, 1.1265216186082418, 1.1511892299529827, 1.1763969916502812,
    1.202156731452703, 1.22848053610687, 1.255380757024691, 1.2828700160787783,
    1.3109612115247644, 1.339667524053303, 1.3690024229745905, 1.3989796725383112,
    1.42961333839197, 1.460917794180647, 1.4929077282912648, 1.5255981507445384,
    1.559004400237837, 1.593142151342267, 1.6280274218573478, 1.6636765803267364,
    1.7001063537185235, 1.7373338352737062, 1.7753764925265212, 1.8142521755003989,
    1.8539791250833855, 1.8945759815869656, 1.9360617934922943, 1.978456026387951,
  ],
  16,
);
/** 1 / CODEBOOK_UNIT, and CODEBOOK_UNIT, of 1 to 4 bits. */
const UNIT_INVERSE: usize = memory.data<f32>([
  0.019947115,
  0.03775992991757007,
  0.03462304163420756,
  0.04481893151667264,
]);
const UNIT: usize = memory.data<f32>([50.13256302979152, 26.4831, 28.8825, 22.312]);
/** SCALE_TABLE: f32 of 2^((code - 255) / 32), 0 for code 0. */
const TABLE: usize = memory.data(1024, 16);
for (let code = 1; code < 256; code++) {
  const power = (code - 255) >> 5;
  const step = (code - 255) & 31;
  store<f32>(
    TABLE + (<usize>code << 2),
    load<f32>(OCTAVE + (<usize>step << 2)) * reinterpret<f32>(<u32>((127 + power) << 23)),
  );
}

/** scale f32 that a code of 1 to 4 bits stands for. */
export function scaleOf(bits: i32, code: u32, base: f32): f32 {
  return base * load<f32>(TABLE + (<usize>code << 2)) * load<f32>(UNIT_INVERSE + (<usize>(bits - 1) << 2));
}

/** Nearest code of a scale of 1 to 4 bits. */
export function scaleCode(bits: i32, scale: f32, base: f32): u32 {
  const ratio: f32 = base > 0 ? (scale * load<f32>(UNIT + (<usize>(bits - 1) << 2))) / base : 0;
  if (!(ratio >= load<f32>(TABLE, 4) * <f32>0.5)) return 0;
  if (ratio >= 1) return 255;
  const word = reinterpret<u32>(ratio);
  const mantissa = reinterpret<f32>((word & 0x7fffff) | 0x3f800000);
  let step: usize = 0;
  // Sums, no branches: nothing foretells which way a scale goes.
  for (let half: usize = 16; half > 0; half >>= 1)
    step += <usize>(mantissa >= load<f32>(EDGES + ((step + half - 1) << 2))) * half;
  step += <usize>(mantissa >= load<f32>(EDGES + (step << 2)));
  return <u32>max(255 + 32 * (<i32>(word >> 23) - 127) + <i32>step, 1);
}

/** Scales of n4 cells (a multiple of 4) of `bits` bits -> f32. */
export function loadScales(bits: i32, from: usize, n4: i32, base: f32, to: usize): void {
  if (bits == 8) {
    halvesToFloats(from, n4, to);
    return;
  }
  const by = f32x4.splat(base);
  const unit = v128.load32_splat(UNIT_INVERSE + (<usize>(bits - 1) << 2));
  for (const end = from + <usize>n4; from < end; from += 4) {
    let x = v128.load32_zero(TABLE + (<usize>load<u8>(from) << 2));
    x = v128.load32_lane(TABLE + (<usize>load<u8>(from, 1) << 2), x, 1);
    x = v128.load32_lane(TABLE + (<usize>load<u8>(from, 2) << 2), x, 2);
    x = v128.load32_lane(TABLE + (<usize>load<u8>(from, 3) << 2), x, 3);
    v128.store(to, f32x4.mul(f32x4.mul(by, x), unit));
    to += 16;
  }
}

/** A record's mean, decoded. */
export function loadMean(record: usize, codes: usize, headDim: i32, to: usize): void {
  const by = f32x4.splat(fromF16(load<u16>(record, 6)));
  for (const end = codes + <usize>headDim; codes < end; codes += 4) {
    const x = i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(codes)));
    v128.store(to, f32x4.mul(by, f32x4.convert_i32x4_s(x)));
    to += 16;
  }
}

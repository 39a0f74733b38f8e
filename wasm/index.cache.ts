export { attend } from './simd/attend';
export { appendHalf, decayMass, hadamard, moveBytes } from './simd/exact';
export { decodeRecord, encodeRecord, recodeRecord } from './simd/record';

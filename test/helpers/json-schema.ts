/** Where a value breaks a schema: an independent reading of the keywords that the constraint holds and that the API's document uses, on parsed values. */
export function violations(schema: any, value: any, path = '$'): string[] {
  const found: string[] = [];
  const fail = (why: string) => found.push(`${path} ${why}`);
  const kind = value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value;
  if (schema.type !== undefined) {
    const types: string[] = [schema.type].flat();
    if (!types.includes(kind) && !(types.includes('integer') && Number.isInteger(value)))
      fail(`is ${kind}, not ${types}`);
  }
  if ('const' in schema && JSON.stringify(value) !== JSON.stringify(schema.const))
    fail('is not the constant');
  if (schema.enum && !schema.enum.some((one: unknown) => JSON.stringify(one) === JSON.stringify(value)))
    fail('is not in the enumeration');
  if (schema.anyOf && !schema.anyOf.some((one: any) => violations(one, value).length === 0))
    fail('is none of the union');
  if (schema.oneOf && schema.oneOf.filter((one: any) => violations(one, value).length === 0).length !== 1)
    fail('is not one of the alternatives');
  if (kind === 'number' && !Number.isFinite(value)) fail('is not finite');
  if (kind === 'number' && value < (schema.minimum ?? Number.NEGATIVE_INFINITY)) fail('is too small');
  if (kind === 'number' && value <= (schema.exclusiveMinimum ?? Number.NEGATIVE_INFINITY))
    fail('is too small');
  if (kind === 'number' && value > (schema.maximum ?? Number.POSITIVE_INFINITY)) fail('is too large');
  if (kind === 'string' && schema.pattern && !new RegExp(schema.pattern, 'u').test(value))
    fail('does not match');
  if (kind === 'string') {
    const length = [...value].length;
    if (length < (schema.minLength ?? 0) || length > (schema.maxLength ?? Number.POSITIVE_INFINITY))
      fail(`has ${length} characters`);
  }
  if (kind === 'array') {
    if (value.length < (schema.minItems ?? 0) || value.length > (schema.maxItems ?? Number.POSITIVE_INFINITY))
      fail(`has ${value.length} items`);
    if (schema.items)
      for (const [i, item] of value.entries()) found.push(...violations(schema.items, item, `${path}[${i}]`));
  }
  if (kind === 'object') {
    for (const name of schema.required ?? []) if (!Object.hasOwn(value, name)) fail(`lacks ${name}`);
    for (const [name, item] of Object.entries(value)) {
      if (schema.properties?.[name])
        found.push(...violations(schema.properties[name], item, `${path}.${name}`));
      else if (schema.additionalProperties === false) fail(`has ${name}`);
      else if (typeof schema.additionalProperties === 'object')
        found.push(...violations(schema.additionalProperties, item, `${path}.${name}`));
    }
  }
  return found;
}

import { byId } from './dom.ts';
import { placeName } from './place.ts';

/** Resolves with the key that the reader gives; null when they do not. */
export function askForKey(why: string): Promise<string | null> {
  const dialog = byId<HTMLDialogElement>('key-dialog');
  const form = byId<HTMLFormElement>('key-form');
  const field = byId<HTMLInputElement>('key');
  byId('key-why').textContent = why;
  field.value = '';
  dialog.returnValue = '';
  dialog.showModal();
  field.focus();
  const listening = new AbortController();
  const { signal } = listening;
  byId('key-cancel').addEventListener('click', () => dialog.close(), { signal });
  form.addEventListener(
    'submit',
    (event) => {
      event.preventDefault();
      if (field.value.trim() !== '') dialog.close(field.value.trim());
    },
    { signal },
  );
  return new Promise((resolve) =>
    dialog.addEventListener(
      'close',
      () => {
        listening.abort();
        const given = dialog.returnValue;
        dialog.returnValue = '';
        field.value = '';
        resolve(given === '' ? null : given);
      },
      { signal },
    ),
  );
}

export function confirmDeletion(title: string): Promise<boolean> {
  const dialog = byId<HTMLDialogElement>('confirm');
  byId('confirm-text').textContent = `“${title}” and its cache are removed from ${placeName} for good.`;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }),
  );
}

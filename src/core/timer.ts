/** A timer cannot be set further ahead, ms; one that is goes off at once. https://nodejs.org/api/timers.html#settimeoutcallback-delay-args */
export const MAX_TIMER_MS = 2 ** 31 - 1;

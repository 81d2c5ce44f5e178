// Who comes first gets the page in his browser's language, and later the one he chose.
() => {
  const zh = location.pathname.replace(/\/$/, '').endsWith('/zh'), at = sessionStorage;
  if (!at.suri && !zh && navigator.language.startsWith('zh')) location.pathname += 'zh';
  at.suri = 'seen';
}

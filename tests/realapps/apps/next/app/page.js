import Link from "next/link";
import Script from "next/script";

export default function Page() {
  return (
    <main>
      <h1>A page</h1>
      <Link href="/items">Items</Link>
      <button id="go">Go</button>
      <ul id="seen" suppressHydrationWarning />
      <Script src="/page.js" />
    </main>
  );
}

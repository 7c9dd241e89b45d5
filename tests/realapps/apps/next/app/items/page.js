export const dynamic = "force-dynamic";

export default async function Items() {
  const names = Array.from({ length: 50 }, (_, number) => `item ${number}`);
  return (
    <ul id="items">
      {names.map((name) => (
        <li key={name}>{name}</li>
      ))}
    </ul>
  );
}

// A small web server: Jetty, with a database in memory (H2) and JSON (Jackson). It opens its port
// when the database has been filled and asked once.

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import javax.servlet.ServletException;
import javax.servlet.http.HttpServlet;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

public final class Server {
  private static final int READINGS = 1000;

  record Station(String name, int readings, double mean) {}

  /** Answers with what the database has. */
  static final class Stations extends HttpServlet {
    private final transient Connection database;
    private final transient ObjectMapper json = new ObjectMapper();

    Stations(Connection database) {
      this.database = database;
    }

    String answer() throws SQLException, IOException {
      var stations = new ArrayList<Map<String, Object>>();
      for (var station : stations(database)) {
        stations.add(
            Map.of(
                "name", station.name(), "readings", station.readings(), "mean", station.mean()));
      }
      return json.writeValueAsString(stations);
    }

    @Override
    protected void doGet(HttpServletRequest request, HttpServletResponse response)
        throws ServletException, IOException {
      response.setContentType("application/json");
      try {
        response.getWriter().println(answer());
      } catch (SQLException error) {
        throw new ServletException(error);
      }
    }
  }

  private static void fill(Connection database) throws SQLException {
    try (Statement statement = database.createStatement()) {
      statement.execute("create table reading (station varchar, degrees double precision)");
    }
    var names = List.of("harbour", "hill", "station road", "mill");
    try (PreparedStatement insert =
        database.prepareStatement("insert into reading values (?, ?)")) {
      for (int number = 0; number < READINGS; number++) {
        insert.setString(1, names.get(number % names.size()));
        insert.setDouble(2, 10 + Math.sin(number) * 5);
        insert.addBatch();
      }
      insert.executeBatch();
    }
  }

  private static List<Station> stations(Connection database) throws SQLException {
    var stations = new ArrayList<Station>();
    var query =
        "select station, count(*), avg(degrees) from reading group by station order by station";
    try (Statement statement = database.createStatement();
        ResultSet rows = statement.executeQuery(query)) {
      while (rows.next()) {
        stations.add(new Station(rows.getString(1), rows.getInt(2), rows.getDouble(3)));
      }
    }
    return stations;
  }

  public static void main(String[] arguments) throws Exception {
    var database = DriverManager.getConnection("jdbc:h2:mem:readings");
    fill(database);
    var servlet = new Stations(database);
    if (!servlet.answer().contains("harbour")) {
      throw new IllegalStateException("the database has lost its readings");
    }
    var server = new org.eclipse.jetty.server.Server(Integer.parseInt(arguments[0]));
    var context = new ServletContextHandler();
    context.addServlet(new ServletHolder(servlet), "/");
    server.setHandler(context);
    server.start();
    server.join();
  }
}
